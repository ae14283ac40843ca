"""What is known of each hub: limits, names, spelling of licences."""
