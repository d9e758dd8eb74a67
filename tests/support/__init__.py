"""What the tests are run with and made of."""
