"""From a request to a plan: options, matrix, prompts, forecasts."""
