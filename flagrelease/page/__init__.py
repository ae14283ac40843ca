"""What every HTML page is made of: style, tables, badges, drawings. It knows nothing of validations or releases."""
