"""What else a user would pick at this cost, written from the papers, each with this project's accounting."""
