"""Training on images and texts themselves: decoded images, their views, encoders with LoRA, several processes."""
