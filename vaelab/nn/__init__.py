"""Parts of models in plain torch: networks, likelihoods, posteriors, priors, quantizers, schedules."""
