"""What the command shows of the builder: tables in the terminal, and pages."""
