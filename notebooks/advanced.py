# %% [markdown]
# # Advanced VAEs
#
# The walk-through of [docs/advanced.md](../docs/advanced.md) as a notebook: β-VAE, VQ-VAE, conditional VAE and
# controlled capacity from Python. [fundamentals.ipynb](fundamentals.ipynb) comes first.
#
# On Colab the next cell installs vaelab; elsewhere it changes nothing if it is there.

# %%
# %pip install -q vaelab

# %%
import os

import vaelab

epochs = int(os.environ.get("VAELAB_NOTEBOOK_EPOCHS", 50))  # half a minute for each training

# %% [markdown]
# ## β-VAE
#
# β weighs the KL: a larger one buys a smaller rate with a larger distortion. A list of values is a sweep.

# %%
runs = vaelab.sweep("digits", model="beta", beta=[1, 4], max_epochs=epochs, report=False)
[(one.config["model"]["beta"], one.final["test/kl"], one.final["test/reconstruction"]) for one in runs]

# %%
vaelab.compare(*runs)

# %% [markdown]
# ## VQ-VAE
#
# The encoder's vectors are replaced by the nearest of K codes, and the gradient is copied past that step. Perplexity
# says how many codes are in use, counted over all test images.

# %%
quantised = vaelab.train("digits", model="vqvae", max_epochs=epochs, report=False)
quantised.final

# %%
quantised.draw_reconstructions(n=16)

# %% [markdown]
# ## Conditional VAE
#
# Encoder and decoder know the label, so z need not hold it, and a class can be asked for.

# %%
conditional = vaelab.train("digits", model="cvae", max_epochs=epochs, report=False)
conditional.draw_samples(n=64, label=7)

# %% [markdown]
# ## Capacity
#
# In place of a weight there is a target C for the KL, which rises from 0.

# %%
vaelab.explain("capacity")["capacity"]

# %%
capacity = vaelab.train(
    "digits",
    model={"": "capacity", "capacity": 5},
    schedule={"capacity": {"over": 0.7, "unit": "fraction"}},
    max_epochs=epochs,
    report=False,
)
print(f"KL {capacity.final['train/kl']:.2f} nats for a capacity of 5")

# %% [markdown]
# ## What may be wrong
#
# What `vaelab doctor` says of a run, with its evidence and a remedy:

# %%
print(vaelab.doctor(capacity))
