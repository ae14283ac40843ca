"""What is online is what was proved, or nothing is: plan, card, folder and hub targets, remote check, provenance."""
