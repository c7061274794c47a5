"""A cascade: a root mask, its experts, a router and a fusion."""
