"""Train on your images, draw synthetic ones, and save what may be handed out.

python examples/fit_and_sample.py
"""

from sklearn.datasets import load_digits

from dp_sinkhorn import DPSinkhorn

digits = load_digits()  # your images: uint8, or floats in [0, 1]
model = DPSinkhorn(epsilon=10, delta=1e-5).fit(digits.images / 16, digits.target)
print(model.privacy_.statement())

images, labels = model.sample(1000, balanced=True)  # uint8 (1000, 8, 8), int64 (1000,)
print(f"{len(images)} images of {images.shape[1]}×{images.shape[2]} pixels, classes {sorted(set(labels.tolist()))}")

model.save("release")  # weights, privacy card and model card: this folder may be handed out
again = DPSinkhorn.load("release")
assert (again.sample(10)[0] == model.sample(10)[0]).all()
