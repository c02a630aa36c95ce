"""A hand-written policy: finds coloured cubes in the image and moves the arm to them."""
