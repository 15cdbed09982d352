"""Drawing images by index over all devices: from a config and weights to images of the data's type."""
