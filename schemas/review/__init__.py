"""What a schema is held against: good practice (`lint`), another schema (`diff`), and the sources' real rows (`check`)."""
