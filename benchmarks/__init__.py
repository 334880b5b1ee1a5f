"""Side by side with peers; measured here, never part of the tests."""
