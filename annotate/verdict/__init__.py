"""What is made of a solution: does it pass, and how far do independent estimates agree."""
