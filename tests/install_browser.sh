#!/bin/sh
# Chromium for tests/browser, where apt-get and root are at hand; those tests skip without it.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" > /dev/null 2>&1 && exit 0
done
if command -v apt-get > /dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
        > /dev/null 2>&1 && exit 0
fi
echo "no Chromium, and it cannot be installed here: the browser tests will skip"
