"""What runs in another interpreter, or beside one: PyG's forms of our programs, and pipes to them."""
