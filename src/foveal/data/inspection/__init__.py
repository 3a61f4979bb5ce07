"""Looking at data: what they hold, what is damaged or double, and what a recipe makes of them."""
