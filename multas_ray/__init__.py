"""Detection and segmentation from partially annotated images, with teachers as a Ray service."""
