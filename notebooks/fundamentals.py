# %% [markdown]
# # The fundamentals of VAEs
#
# The walk-through of [docs/fundamentals.md](../docs/fundamentals.md) as a notebook: the same steps from Python. That
# page has what was measured, and what introductions commonly get wrong.
#
# On Colab the next cell installs vaelab; elsewhere it changes nothing if it is there.

# %%
# %pip install -q vaelab

# %%
import os

import vaelab

epochs = int(os.environ.get("VAELAB_NOTEBOOK_EPOCHS", 50))  # half a minute for each training

# %% [markdown]
# ## KL: the price of a code
#
# An encoder gives a distribution q(z|x), not a point. KL(q ‖ p) says how far it is from the prior, hence what z tells
# about x. Never negative, though a single draw of log q(z) − log p(z) may be.

# %%
vaelab.explain("kl")["kl"]

# %% [markdown]
# ## The reparameterisation trick
#
# The loss is a mean over draws of z, and the encoder's gradient must pass through the draw: z = μ + σε lets it.

# %%
vaelab.explain("reparameterisation")["reparameterisation"]

# %% [markdown]
# ## The ELBO is a bound
#
# log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)): it is below log p(x) by as much as the encoder is off the true posterior.

# %%
vaelab.explain("bound")["bound"]

# %% [markdown]
# ## A VAE
#
# On the 8×8 digits, which are there without a download; `"mnist"` is another name that it takes. All terms are in nats
# per image, summed over pixels and dimensions.

# %%
run = vaelab.train("digits", model="vae", max_epochs=epochs, report=False)
run

# %% [markdown]
# Images beside what the model makes of them, and draws from the prior, decoded:

# %%
run.draw_reconstructions(n=16)

# %%
run.draw_samples(n=64)

# %% [markdown]
# ## Losses are likelihoods
#
# Binary cross-entropy is a Bernoulli's −log p(x|z); a summed squared error is that of a Gaussian with σ² = ½, which
# here leaves nothing to say for the code. Reconstructions of different likelihoods cannot be compared; the KL can.

# %%
squared = vaelab.train("digits", likelihood="mse", max_epochs=epochs, report=False)
print(f"KL: bernoulli {run.final['test/kl']:.4f}, mse {squared.final['test/kl']:.4f}")

# %% [markdown]
# ## Which dimensions are used
#
# A healthy VAE often uses few of the dimensions it has. A row below is a dimension, which moves while the others stay.

# %%
measured = run.evaluate(["likelihood", "latents"], importance_samples=10)
print(f"{measured['latents/active']:.0f} of {run.summary['model']['latent_dimensions']} dimensions are active")
print(f"ELBO {measured['likelihood/elbo']:.2f}, a tighter bound {measured['likelihood/log_p_hat']:.2f}")

# %%
run.traverse()

# %% [markdown]
# ## Beside a plain autoencoder
#
# It has no noise and no prior: it reconstructs better, and there is nothing to sample from.

# %%
plain = vaelab.train("digits", model="ae", max_epochs=epochs, report=False)
print(f"reconstruction: ae {plain.final['test/reconstruction']:.2f}, vae {run.final['test/reconstruction']:.2f}")

# %% [markdown]
# ## Interpolation
#
# From the code of one test image to that of another. The ends are reconstructions; the middle is what counts.

# %%
run.interpolate(0, 1, steps=9)

# %% [markdown]
# ## Anomalies
#
# Images of another kind should have a low likelihood: areas under the ROC curve, 1 is perfect and 0.5 is chance.

# %%
scores = run.evaluate(["anomaly"], ood="fake", importance_samples=10, **{"ood.image_shape": [1, 8, 8]})
{name: value for name, value in scores.items() if "auroc" in name}

# %% [markdown]
# Next: [advanced.ipynb](advanced.ipynb), with β-VAE, VQ-VAE, conditional VAE and capacity.
