"""Names that every room may use."""


class UserError(ValueError):
  """A mistake of the user: its message is one line that says what to do."""
