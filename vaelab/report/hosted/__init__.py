"""Pages on other hosts: a model card for the Hugging Face hub, a workspace and a report for W&B."""
