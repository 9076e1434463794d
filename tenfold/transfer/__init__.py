"""Transfer: what a representation does for classification, detection, segmentation and pose, frozen and fine-tuned."""
