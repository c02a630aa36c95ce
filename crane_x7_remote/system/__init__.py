"""What our processes need from the operating system."""
