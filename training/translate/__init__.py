"""A linear map from one mask's vectors to another's, so that an index need not be embedded again."""
