"""Datasets: folders of images, TensorFlow Datasets, digits and synthetic images."""
