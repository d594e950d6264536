"""Early exits: heads for models that have none, and the thresholds above which they answer alone."""
