"""Drawing images by index over all devices: from a config and weights to uint8 images."""
