"""The description for a package index: the README without pictures and without links into the repository.

Such links lead nowhere on an index. Everything else about the package stands in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
text = re.sub(r"(^!\[.*\n)+\n\*.*\*\n\n", "", text, flags=re.MULTILINE)  # with their caption
text = re.sub(r"\[([^]]+)\]\((?!https://)[^)]+\)", r"\1", text)
setup(long_description=text, long_description_content_type="text/markdown")
