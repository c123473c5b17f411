"""Methods with a teacher that is a moving average of the student."""
