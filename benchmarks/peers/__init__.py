"""Peers: other methods of similar cost, written from their papers, with this project's accounting."""
