"""A hand-written policy: finds coloured cubes in the image and drives to them."""
