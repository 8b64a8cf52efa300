"""What is kept of images: decoded once, or a frozen backbone's features of them."""
