"""Call detail records: facts, journal, publication and consumption."""
