"""Branch and bound: complete search over splits of the input box and of the neurons' ranges."""
