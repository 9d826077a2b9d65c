"""The run protocol: submitting, attempts, launches on rented machines, reading."""
