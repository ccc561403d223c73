"""datastore: to be written."""
