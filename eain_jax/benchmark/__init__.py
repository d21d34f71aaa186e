"""How fast training and scoring run, and how near that is to the machine."""
