"""What the page draws from its own data: charts that answer to the pointer, and a table of pairs."""
