"""Weak losses after BoMBo: what boxes say of masks, and masks of boxes."""
