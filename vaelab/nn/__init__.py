"""Parts of models in plain torch: networks, likelihoods, quantizers, schedules."""
