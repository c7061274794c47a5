"""What people look at: the console's page, the operator's pictures, places on a map."""
