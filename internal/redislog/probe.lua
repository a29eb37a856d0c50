-- Tries what the bus needs, on keys that are gone at the end.
-- KEYS  [1] a log  [2] its hash  [3] any other key: a cluster refuses it. Left out for a cluster.
-- ARGV  [1] the command that publishes: PUBLISH or SPUBLISH
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('XADD', KEYS[1], '5-0', 'event', '')
redis.call('XDEL', KEYS[1], '5-0')
local id = redis.call('XADD', KEYS[1], 'NOMKSTREAM', 'MAXLEN', '~', '10', '5-*', 'event', '')
redis.call('XINFO', 'STREAM', KEYS[1])
redis.call('XTRIM', KEYS[1], 'MINID', '~', id)
redis.call('XREVRANGE', KEYS[1], '(' .. id, '-', 'COUNT', '1')
redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', '1')
redis.call('HSET', KEYS[2], 'epoch', '5')
redis.call('HMGET', KEYS[2], 'epoch')
redis.call('HGET', KEYS[2], 'epoch')
redis.call('EXISTS', KEYS[1])
redis.call('HRANDFIELD', KEYS[2], 2, 'WITHVALUES')
redis.call('HDEL', KEYS[2], 'epoch')
redis.call('PERSIST', KEYS[1])
redis.call('PEXPIRE', KEYS[1], 1000)
redis.call('PEXPIRE', KEYS[1], 1000, 'GT')
redis.call('PTTL', KEYS[1])
redis.call('TIME')
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], '', 'PX', '1000')
redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call(ARGV[1], KEYS[1], '')
if id ~= '5-1' then return redis.error_reply('Invalid stream ID given back: ' .. id) end
return id
