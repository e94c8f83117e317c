"""The shard format, one owner: members (`members`), tar files (`tar`), the manifest beside them (`manifest`)."""
