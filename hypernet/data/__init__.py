"""From a folder of images to training batches."""
