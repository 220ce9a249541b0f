"""Weak losses after BoMBo: masks learned from boxes, and boxes from masks."""
