"""The one kind of exception that is the user's to mend."""


class UserError(ValueError):
    """Its message is one line that names the option or file, what is wrong with it and what would be right."""
