"""Set-up that tests share. No test module imports another."""
