"""A tiny trained model and the query that shows the whole path; see `demonstration`."""
