"""From what was asked to what will be measured: options, matrix, prompts, forecasts."""
