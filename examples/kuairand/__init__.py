"""KuaiRand-Pure: short-video feeds of a real app; the adapter from its public files, and its feature schema."""
