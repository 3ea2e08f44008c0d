"""Sessions in Redis or Valkey: the record, the commit, the process that holds them. Redis is seen in here alone."""
